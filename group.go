package robust

import "context"

// GroupInfo is a consumer group as ListGroups shows it.
type GroupInfo struct {
	ID         string
	State      string
	Generation int64
	Members    []string
}

// ListGroups returns the cluster's consumer groups.
func (a *AdminClient) ListGroups(ctx context.Context) ([]GroupInfo, error) {
	var resp listGroupsResponse
	if err := a.client.ask(ctx, route{repeatable: true}, &listGroupsRequest{}, &resp); err != nil {
		return nil, err
	}
	groups := make([]GroupInfo, 0, len(resp.Groups))
	for _, g := range resp.Groups {
		groups = append(groups, GroupInfo{ID: g.GroupID, State: g.State, Generation: g.Generation, Members: g.Members})
	}
	return groups, nil
}

// Rebalance has a consumer group assign its partitions anew, or every group if
// groupID is empty; [ErrGroupNotFound].
func (a *AdminClient) Rebalance(ctx context.Context, groupID string) error {
	return a.client.ask(ctx, route{repeatable: true}, &rebalanceRequest{GroupID: groupID}, &rebalanceResponse{})
}
